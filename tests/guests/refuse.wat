;; Answers an error.
(data (i32.const 1200) "no opinion today")
(func (export "coroner:policy/rules@0.1.0#rule") (param i32) (result i32)
  (local $at i32)
  (local.set $at (call $grow (i32.const 64)))
  (i32.store8 offset=0 (local.get $at) (i32.const 1))
  (i32.store offset=4 (local.get $at) (i32.const 1200))
  (i32.store offset=8 (local.get $at) (i32.const 16))
  (local.get $at))
