;; Turns to the host in every way that does not need memory of its own, and hands it bytes.
(component
  (import "wait" (func $wait))
  (import "step" (func $step (result u32)))
  (import "fail" (func $fail))
  (import "panic" (func $panic))
  (import "take" (func $take (param "bytes" (list u8))))
  (core module $mem (memory (export "memory") 4))
  (core instance $mem (instantiate $mem))
  (core func $wait (canon lower (func $wait)))
  (core func $step (canon lower (func $step)))
  (core func $fail (canon lower (func $fail)))
  (core func $panic (canon lower (func $panic)))
  (core func $take (canon lower (func $take) (memory (core memory $mem "memory"))))
  (core module $m
    (import "host" "wait" (func $wait))
    (import "host" "step" (func $step (result i32)))
    (import "host" "fail" (func $fail))
    (import "host" "panic" (func $panic))
    (import "host" "take" (func $take (param i32 i32)))
    (import "mem" "memory" (memory 1))
    (func (export "wait") (call $wait))
    (func (export "fail") (call $fail))
    (func (export "panic") (call $panic))
    (func (export "take") (param i32) (call $take (i32.const 0) (local.get 0)))
    ;; Bytes from beyond the end of memory.
    (func (export "take-out-of-bounds") (call $take (i32.const 0x3ffff) (i32.const 2)))
    ;; Calls `step` n times and gives the last answer.
    (func (export "steps") (param $n i32) (result i32)
      (local $last i32)
      (block $done
        (loop $next
          (br_if $done (i32.eqz (local.get $n)))
          (local.set $last (call $step))
          (local.set $n (i32.sub (local.get $n) (i32.const 1)))
          (br $next)))
      (local.get $last))
    ;; Steps and then waits, n times.
    (func (export "steps-and-waits") (param $n i32)
      (block $done
        (loop $next
          (br_if $done (i32.eqz (local.get $n)))
          (drop (call $step))
          (call $wait)
          (local.set $n (i32.sub (local.get $n) (i32.const 1)))
          (br $next))))
    ;; Waits n times.
    (func (export "waits") (param $n i32)
      (block $done
        (loop $next
          (br_if $done (i32.eqz (local.get $n)))
          (call $wait)
          (local.set $n (i32.sub (local.get $n) (i32.const 1)))
          (br $next)))))
  (core instance $i (instantiate $m
    (with "mem" (instance $mem))
    (with "host" (instance
      (export "wait" (func $wait))
      (export "step" (func $step))
      (export "fail" (func $fail))
      (export "panic" (func $panic))
      (export "take" (func $take))))))
  (func (export "wait") (canon lift (core func $i "wait")))
  (func (export "fail") (canon lift (core func $i "fail")))
  (func (export "panic") (canon lift (core func $i "panic")))
  (func (export "take") (param "len" u32) (canon lift (core func $i "take")))
  (func (export "take-out-of-bounds") (canon lift (core func $i "take-out-of-bounds")))
  (func (export "steps") (param "n" u32) (result u32) (canon lift (core func $i "steps")))
  (func (export "steps-and-waits") (param "n" u32) (canon lift (core func $i "steps-and-waits")))
  (func (export "waits") (param "n" u32) (canon lift (core func $i "waits"))))
