;; Answers a variant case that does not exist.
(func (export "coroner:policy/rules@0.1.0#rule") (param i32) (result i32)
  (local $at i32)
  (local.set $at (call $grow (i32.const 64)))
  (i32.store8 offset=4 (local.get $at) (i32.const 77))
  (local.get $at))
