(component (core module $m (func $"a\1bb" unreachable) (export "f" (func $"a\1bb")) (@name "x\1b"))
  (core instance $i (instantiate $m)) (func (export "f") (canon lift (core func $i "f"))))