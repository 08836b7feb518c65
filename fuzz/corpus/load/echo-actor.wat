;; The least of an actor: gives back the payload, and keeps one page of memory, of which it touches the beginning.
(component
  (import "airssys:actor/types@0.1.0" (instance $types
    (type $record (record (field "payload" (list u8)) (field "sender" (option string)) (field "topic" (option string))
      (field "content-type" (option string)) (field "wants-answer" bool)))
    (export "message" (type (eq $record)))))
  (alias export $types "message" (type $message))
  (core module $m
    (memory (export "memory") 1)
    (global $next (mut i32) (i32.const 1024))
    ;; Whatever is allocated is an argument, and gone when the next message comes.
    (func (export "realloc") (param i32 i32 i32) (param $size i32) (result i32)
      (local $at i32)
      (local.set $at (global.get $next))
      (global.set $next (i32.add (global.get $next) (local.get $size)))
      (local.get $at))
    (func (export "handle") (param $payload i32) (param $len i32)
      (param i32 i32 i32) (param i32 i32 i32) (param i32 i32 i32) (param i32) (result i32)
      (global.set $next (i32.const 1024))
      (i32.store (i32.const 0) (i32.const 0))
      (i32.store (i32.const 4) (i32.const 1))
      (i32.store (i32.const 8) (local.get $payload))
      (i32.store (i32.const 12) (local.get $len))
      (i32.const 0)))
  (core instance $i (instantiate $m))
  (func $handle (param "message" $message) (result (result (option (list u8)) (error string)))
    (canon lift (core func $i "handle") (memory (core memory $i "memory")) (realloc (core func $i "realloc"))))
  (instance $handler (export "handle" (func $handle)))
  (export "airssys:actor/handler@0.1.0" (instance $handler)))
