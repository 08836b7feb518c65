(component
  (component $a (core module $m (func (export "f"))) (core instance $i (instantiate $m)) (func (export "f") (canon lift (core func $i "f"))))
  (instance $x (instantiate $a)) (instance $y (instantiate $a))
  (export "x" (instance $x)) (export "f" (func $y "f")))