;; Makes as many handles of a resource of its own as asked for, and drops none.
(component
  (type $r (resource (rep i32)))
  (core func $new (canon resource.new $r))
  (core module $m
    (import "r" "new" (func $new (param i32) (result i32)))
    (func (export "leak") (param $n i32)
      (block $done
        (loop $next
          (br_if $done (i32.eqz (local.get $n)))
          (drop (call $new (local.get $n)))
          (local.set $n (i32.sub (local.get $n) (i32.const 1)))
          (br $next)))))
  (core instance $i (instantiate $m (with "r" (instance (export "new" (func $new))))))
  (func (export "leak") (param "n" u32) (canon lift (core func $i "leak"))))
