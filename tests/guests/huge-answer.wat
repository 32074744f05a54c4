;; Answers eight mebibytes of reasons, all of them really there.
(func (export "coroner:policy/rules@0.1.0#rule") (param i32) (result i32)
  (local $at i32)
  (local.set $at (call $grow (i32.const 64)))
  (memory.fill (local.get $at) (i32.const 0) (i32.const 64))
  (i32.store8 offset=4 (local.get $at) (i32.const 1))
  (i32.store offset=16 (local.get $at) (call $grow (i32.const 8388608)))
  (i32.store offset=20 (local.get $at) (i32.const 8388608))
  (local.get $at))
