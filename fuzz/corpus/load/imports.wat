(component
  (import "a" (func))
  (import "wasi:cli/environment@0.2.0" (instance (export "nothing" (func (param "x" u8) (result string)))))
  (import "b:c/d@1.0.0" (instance (type (sub resource)) (export "r" (type (sub resource))) (export "e" (func)))))