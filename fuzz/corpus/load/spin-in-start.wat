;; Never ends to start.
(component
  (core module $m
    (func $spin (loop $again (br $again)))
    (start $spin))
  (core instance $i (instantiate $m)))
