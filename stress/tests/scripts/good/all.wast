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

;; What the host defines: its resources are made, lent, given away and dropped.
(component
  (import "host" (instance $host
    (export "resource1" (type $r (sub resource)))
    (export "[constructor]resource1" (func (param "r" u32) (result (own $r))))
    (export "[static]resource1.drops" (func (result u32)))
    (export "[method]resource1.simple" (func (param "self" (borrow $r)) (param "rep" u32)))))
  (alias export $host "resource1" (type $r))
  (core func $new (canon lower (func $host "[constructor]resource1")))
  (core func $simple (canon lower (func $host "[method]resource1.simple")))
  (core func $drops (canon lower (func $host "[static]resource1.drops")))
  (core func $drop (canon resource.drop $r))
  (core module $m
    (import "" "new" (func $new (param i32) (result i32)))
    (import "" "simple" (func $simple (param i32 i32)))
    (import "" "drops" (func $drops (result i32)))
    (import "" "drop" (func $drop (param i32)))
    (func (export "f") (param i32) (result i32)
      (local $r i32)
      (local.set $r (call $new (i32.const 7)))
      (call $simple (local.get $r) (local.get 0))
      (call $drop (local.get $r))
      (call $drops)))
  (core instance $i (instantiate $m (with "" (instance
    (export "new" (func $new)) (export "simple" (func $simple))
    (export "drops" (func $drops)) (export "drop" (func $drop))))))
  (func (export "f") (param "rep" u32) (result u32) (canon lift (core func $i "f"))))
(assert_return (invoke "f" (u32.const 7)) (u32.const 1))
(assert_return (invoke "f" (u32.const 7)) (u32.const 2))
(assert_trap (invoke "f" (u32.const 8)) "it is 7, and should be 8")

;; What one component exports and another instantiates.
(component $provider
  (core module (export "m") (func (export "seven") (result i32) (i32.const 7))))
(component
  (import "provider" (instance $provider
    (export "m" (core module (export "seven" (func (result i32)))))))
  (core instance $i (instantiate (module $provider "m")))
  (func (export "seven") (result u32) (canon lift (core func $i "seven"))))
(assert_return (invoke "seven") (u32.const 7))
(assert_unlinkable (component
  (import "provider" (instance (export "m" (core module (export "eight" (func (result i32))))))))
  "module export `eight` not defined")

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
;; It is refused, and not for what it should be.
(assert_invalid (component (core module (memory i64 1))) "type mismatch")
