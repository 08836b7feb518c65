;; Never ends.
(component
  (core module $m
    (func (export "spin") (loop $again (br $again)))
    (func (export "ok")))
  (core instance $i (instantiate $m))
  (func (export "spin") (canon lift (core func $i "spin")))
  (func (export "ok") (canon lift (core func $i "ok"))))
