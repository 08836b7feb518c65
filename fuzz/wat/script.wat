;; How a guest begins that lies. It has a script, bytes of the fuzzer's: what it does when it is called, and every
;; pointer, length and discriminant that it hands over. What goes over the border is the script itself, read as whatever
;; it is taken for. What it imports as `host` comes next, then what follows the script, then what it exports.

  ;; Its memory, and how it reads its script, which ends in zeros without end.
  (core module $libc
    (memory (export "memory") 1)
    (global $at (mut i32) (i32.const 0))
    (global $end (mut i32) (i32.const 0))
    (global $free (mut i32) (i32.const 16))
    (func (export "follow") (param $at i32) (param $len i32)
      (global.set $at (local.get $at))
      (global.set $end (i32.add (local.get $at) (local.get $len))))
    (func $byte (export "byte") (result i32)
      (if (i32.ge_u (global.get $at) (global.get $end)) (then (return (i32.const 0))))
      (global.set $at (i32.add (global.get $at) (i32.const 1)))
      (i32.load8_u (i32.sub (global.get $at) (i32.const 1))))
    (func $word (result i32)
      (i32.or
        (i32.or (call $byte) (i32.shl (call $byte) (i32.const 8)))
        (i32.or (i32.shl (call $byte) (i32.const 16)) (i32.shl (call $byte) (i32.const 24)))))
    ;; A number that may be a pointer: near the beginning, aligned or not; near the end of memory; or anything.
    (func $number (export "number") (result i32)
      (block $any
        (block $end
          (block $near
            (block $aligned
              (br_table $aligned $near $end $any (i32.and (call $byte) (i32.const 3))))
            (return (i32.shl (call $byte) (i32.const 2))))
          (return (call $byte)))
        (return (i32.sub (i32.shl (memory.size) (i32.const 16)) (call $byte))))
      (call $word))
    ;; Honest at an even number of the script, as it is at the end of it and before there is one.
    (func (export "realloc") (param $old i32) (param $old-len i32) (param $align i32) (param $len i32) (result i32)
      (local $at i32)
      (if (i32.and (call $byte) (i32.const 1)) (then (return (call $number))))
      (local.set $at
        (i32.and
          (i32.add (global.get $free) (i32.sub (local.get $align) (i32.const 1)))
          (i32.sub (i32.const 0) (local.get $align))))
      (global.set $free (i32.add (local.get $at) (local.get $len)))
      (if (i32.gt_u (global.get $free) (i32.shl (memory.size) (i32.const 16)))
        (then
          (if (i32.eq (i32.const -1) (memory.grow (i32.add (i32.shr_u (local.get $len) (i32.const 16)) (i32.const 1))))
            (then unreachable))))
      (memory.copy (local.get $at) (local.get $old)
        (select (local.get $old-len) (local.get $len) (i32.lt_u (local.get $old-len) (local.get $len))))
      (local.get $at)))
  (core instance $libc (instantiate $libc))
  (alias core export $libc "memory" (core memory $memory))
  (alias core export $libc "realloc" (core func $realloc))

  ;; Where the script comes from.
  (import "script" (func $script (result (list u8))))
  (core func $script (canon lower (func $script) (memory $memory) (realloc $realloc)))

  ;; A resource of its own.
  (type $own (resource (rep i32)))
  (core func $own-new (canon resource.new $own))
  (core func $own-rep (canon resource.rep $own))
  (core func $own-drop (canon resource.drop $own))

  ;; Some of WASI: bytes as many as asked for, and handles that can be waited for.
  (import "wasi:random/random@0.2.0" (instance $random
    (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
  (core func $random (canon lower (func $random "get-random-bytes") (memory $memory) (realloc $realloc)))
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $pollable (sub resource)))
    (export "[method]pollable.ready" (func (param "self" (borrow $pollable)) (result bool)))
    (export "[method]pollable.block" (func (param "self" (borrow $pollable))))
    (export "poll" (func (param "in" (list (borrow $pollable))) (result (list u32))))))
  (alias export $poll "pollable" (type $pollable))
  (core func $ready (canon lower (func $poll "[method]pollable.ready")))
  (core func $block (canon lower (func $poll "[method]pollable.block")))
  (core func $poll (canon lower (func $poll "poll") (memory $memory) (realloc $realloc)))
  (core func $pollable-drop (canon resource.drop $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (alias outer 1 $pollable (type $pollable))
    (export "subscribe-duration" (func (param "when" u64) (result (own $pollable))))))
  (core func $subscribe-duration (canon lower (func $clock "subscribe-duration")))
