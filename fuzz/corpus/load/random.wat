;; Asks WASI for as many random bytes as it is told to.
(component
  (import "wasi:random/random@0.2.0" (instance $random
    (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
  (core module $mem
    (memory (export "memory") 32)
    ;; Everything goes to the second page: one list at a time is all there is.
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 0x10000)))
  (core instance $mem (instantiate $mem))
  (core func $get (canon lower (func $random "get-random-bytes")
    (memory (core memory $mem "memory")) (realloc (core func $mem "realloc"))))
  (core module $m
    (import "random" "get" (func $get (param i64 i32)))
    (func (export "get") (param i64) (call $get (local.get 0) (i32.const 0))))
  (core instance $i (instantiate $m (with "random" (instance (export "get" (func $get))))))
  (func (export "get") (param "len" u64) (canon lift (core func $i "get"))))
