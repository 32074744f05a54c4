;; Waits for an hour.
(import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
;; ---
(func (export "coroner:policy/rules@0.1.0#rule") (param i32) (result i32)
  (local $at i32)
  ;; A subscription: user data, tag 0 for a clock, its id 1, an hour in nanoseconds.
  (i32.store offset=16 (i32.const 1408) (i32.const 1))
  (i64.store offset=24 (i32.const 1408) (i64.const 3600000000000))
  (drop (call $poll (i32.const 1408) (i32.const 1500) (i32.const 1) (i32.const 1600)))
  (local.set $at (call $grow (i32.const 64)))
  (memory.fill (local.get $at) (i32.const 0) (i32.const 64))
  (local.get $at))
