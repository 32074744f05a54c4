;; Calls itself without end.
(func $deep (param i64 i64 i64 i64) (result i64)
  (i64.add (local.get 0)
    (call $deep (local.get 1) (local.get 2) (local.get 3) (i64.add (local.get 0) (i64.const 1)))))
(func (export "coroner:policy/rules@0.1.0#rule") (param i32) (result i32)
  (i32.wrap_i64 (call $deep (i64.const 1) (i64.const 2) (i64.const 3) (i64.const 4))))
