;; What a liar who is no actor has as `host`: nothing that does anything.

  (core module $host
    (func (export "log") (param i32 i32 i32))
    (func (export "self-id") (param i32))
    (func (export "send") (param i32 i32 i32 i32 i32 i32 i32 i32))
    (func (export "request") (param i32 i32 i32 i32 i32 i32))
    (func (export "publish") (param i32 i32 i32 i32 i32))
    (func (export "subscribe") (param i32 i32 i32))
    (func (export "unsubscribe") (param i32 i32))
    (func (export "consumer-request") (param i32 i32 i32 i32 i32 i32))
    (func (export "consumer-publish") (param i32 i32 i32 i32 i32 i32 i32 i32)))
  (core instance $host (instantiate $host))
