;; Loops of three kinds: arithmetic alone, calls, and memory.
(component
  (core module $m
    (memory (export "memory") 1)

    ;; The n-th Fibonacci number, by iteration.
    (func (export "fib") (param $n i32) (result i64)
      (local $a i64) (local $b i64) (local $t i64)
      (local.set $b (i64.const 1))
      (block $done
        (loop $next
          (br_if $done (i32.eqz (local.get $n)))
          (local.set $t (i64.add (local.get $a) (local.get $b)))
          (local.set $a (local.get $b))
          (local.set $b (local.get $t))
          (local.set $n (i32.sub (local.get $n) (i32.const 1)))
          (br $next)))
      (local.get $a))

    ;; The sum of 1 to n, by counting: as tight as a loop gets.
    (func (export "tight") (param $n i32) (result i32)
      (local $x i32)
      (block $done
        (loop $next
          (br_if $done (i32.eqz (local.get $n)))
          (local.set $x (i32.add (local.get $x) (local.get $n)))
          (local.set $n (i32.sub (local.get $n) (i32.const 1)))
          (br $next)))
      (local.get $x))

    ;; A linear congruential generator, n steps, with a call for each: through a table, so that it is not inlined.
    (type $step (func (param i32) (result i32)))
    (table 1 1 funcref)
    (elem (i32.const 0) $lcg)
    (func $lcg (type $step) (i32.add (i32.mul (local.get 0) (i32.const 1664525)) (i32.const 1013904223)))
    (func (export "calls") (param $n i32) (result i32)
      (local $x i32)
      (local.set $x (i32.const 1))
      (block $done
        (loop $next
          (br_if $done (i32.eqz (local.get $n)))
          (local.set $x (call_indirect (type $step) (local.get $x) (i32.const 0)))
          (local.set $n (i32.sub (local.get $n) (i32.const 1)))
          (br $next)))
      (local.get $x))

    ;; Stores 0, 1, 2, … as n i32 and gives the sum of the first and the last, read back.
    (func (export "fill") (param $n i32) (result i32)
      (local $i i32)
      (block $done
        (loop $next
          (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
          (i32.store (i32.shl (local.get $i) (i32.const 2)) (local.get $i))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br $next)))
      (i32.add
        (i32.load (i32.const 0))
        (i32.load (i32.shl (i32.sub (local.get $n) (i32.const 1)) (i32.const 2)))))

    ;; Reads and writes all over a page, n times: a memory-heavy loop.
    (func (export "scatter") (param $n i32) (result i32)
      (local $x i32) (local $at i32)
      (local.set $x (i32.const 1))
      (block $done
        (loop $next
          (br_if $done (i32.eqz (local.get $n)))
          (local.set $x (i32.add (i32.mul (local.get $x) (i32.const 1664525)) (i32.const 1013904223)))
          (local.set $at (i32.and (i32.shr_u (local.get $x) (i32.const 8)) (i32.const 0xfffc)))
          (i32.store (local.get $at) (i32.add (i32.load (local.get $at)) (local.get $x)))
          (local.set $n (i32.sub (local.get $n) (i32.const 1)))
          (br $next)))
      (i32.load (local.get $at))))
  (core instance $i (instantiate $m))
  (func (export "fib") (param "n" u32) (result u64) (canon lift (core func $i "fib")))
  (func (export "tight") (param "n" u32) (result u32) (canon lift (core func $i "tight")))
  (func (export "calls") (param "n" u32) (result u32) (canon lift (core func $i "calls")))
  (func (export "fill") (param "n" u32) (result u32) (canon lift (core func $i "fill")))
  (func (export "scatter") (param "n" u32) (result u32) (canon lift (core func $i "scatter"))))
