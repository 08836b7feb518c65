;; Grows its memory and its table on request, and says how large they were (-1: refused).
(component
  (core module $m
    (memory 1)
    (table 1 funcref)
    (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
    (func (export "grow-table") (param i32) (result i32) (table.grow (ref.null func) (local.get 0)))
    ;; A second memory with a maximum of its own.
    (memory $bounded 0 2)
    (func (export "grow-bounded") (param i32) (result i32) (memory.grow $bounded (local.get 0))))
  (core instance $i (instantiate $m))
  (func (export "grow") (param "pages" u32) (result s32) (canon lift (core func $i "grow")))
  (func (export "grow-table") (param "elements" u32) (result s32) (canon lift (core func $i "grow-table")))
  (func (export "grow-bounded") (param "pages" u32) (result s32) (canon lift (core func $i "grow-bounded"))))
