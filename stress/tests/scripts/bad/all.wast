;; What is not as it should be, and must be found.
(component
  (core module $m
    (func (export "one") (result i32) (i32.const 1))
    (func (export "trap") unreachable))
  (core instance $i (instantiate $m))
  (func (export "one") (result u32) (canon lift (core func $i "one")))
  (func (export "trap") (canon lift (core func $i "trap"))))
(assert_return (invoke "one") (u32.const 2))
(assert_trap (invoke "one") "unreachable")
(assert_return (invoke "trap"))
(assert_invalid (component) "it is valid")
(assert_unlinkable (component) "it can be linked")
(component (core module (func i32.add)))
(assert_trap (component (core module $m (func $start unreachable) (start $start)) (core instance (instantiate $m))) "divide")
(assert_invalid (component (core module (func i32.add))) "unknown type")
(assert_unlinkable (component (import "nobody" (func))) "expected function found module")
