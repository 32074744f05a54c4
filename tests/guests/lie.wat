;; Answers a list of a billion actions that is not there.
(func (export "coroner:policy/rules@0.1.0#rule") (param i32) (result i32)
  (local $at i32)
  (local.set $at (call $grow (i32.const 64)))
  (i32.store8 offset=0 (local.get $at) (i32.const 0))
  (i32.store8 offset=4 (local.get $at) (i32.const 1))
  (i32.store offset=8 (local.get $at) (i32.const 0))
  (i32.store offset=12 (local.get $at) (i32.const 1000000000))
  (local.get $at))
