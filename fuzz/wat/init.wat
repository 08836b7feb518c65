;; The `init` of a component for `airssys:actor`. A module out of nothing would not live beyond it.

  (func $init (param "config" (list (tuple string string))) (result (result (error string)))
    (canon lift (core func $liar "2") (memory $memory) (realloc $realloc) (post-return (core func $liar "post"))))
  (instance $init (export "init" (func $init)))
  (export "airssys:actor/init@0.1.0" (instance $init))
