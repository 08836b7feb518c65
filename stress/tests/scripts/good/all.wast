;; A directive of each kind, as it should be.
(component $numbers
  (core module $m
    (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
    (func (export "trap") unreachable))
  (core instance $i (instantiate $m))
  (func (export "add") (param "a" u32) (param "b" u32) (result u32) (canon lift (core func $i "add")))
  (func (export "trap") (canon lift (core func $i "trap"))))
(assert_return (invoke "add" (u32.const 2) (u32.const 3)) (u32.const 5))

(component definition $later
  (core module $m
    (import "" "return" (func $return (param i32)))
    (func (export "f") (result i32) (call $return (i32.const 7)) (i32.const 0))
    (func (export "callback") (param i32 i32 i32) (result i32) unreachable))
  (core func $return (canon task.return (result u32)))
  (core instance $i (instantiate $m (with "" (instance (export "return" (func $return))))))
  (func (export "f") async (result u32) (canon lift (core func $i "f") async (callback (func $i "callback")))))
(component instance $one $later)
(assert_return (invoke "f") (u32.const 7))
(assert_return (invoke $one "f") (u32.const 7))
(assert_return (invoke $numbers "add" (u32.const 1) (u32.const 1)) (u32.const 2))
(assert_trap (invoke $numbers "trap") "unreachable")
;; It is gone.
(assert_return (invoke $numbers "add" (u32.const 1) (u32.const 1)) (u32.const 2))

(assert_trap (component
  (core module $m (func $start unreachable) (start $start))
  (core instance (instantiate $m))) "unreachable")
(assert_invalid (component (core module (func i32.add))) "type mismatch")
(assert_unlinkable (component (import "nobody" (func))) "nobody")

;; Ended by a limit: what goes on without end after it has returned.
(component
  (core module $m
    (import "" "return" (func $return))
    (func (export "f") (result i32) (call $return) (i32.const 1))
    (func (export "callback") (param i32 i32 i32) (result i32) (i32.const 1)))
  (core func $return (canon task.return))
  (core instance $i (instantiate $m (with "" (instance (export "return" (func $return))))))
  (func (export "f") async (canon lift (core func $i "f") async (callback (func $i "callback")))))
(assert_return (invoke "f"))

;; Refused, each for a reason.
(component (import "nobody" (func)))
(component (core module (memory i64 1)))
(component (import "m" (core module $m)) (core instance (instantiate $m)))
