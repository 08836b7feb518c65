;; What a component for `wasmcloud:messaging` exports.

  (func $handle-message (param "msg" $broker-message) (result (result (error string)))
    (canon lift (core func $liar "7") (memory $memory) (realloc $realloc) (post-return (core func $liar "post"))))
  (instance $handler (export "handle-message" (func $handle-message)))
  (export "wasmcloud:messaging/handler@0.2.0" (instance $handler))
