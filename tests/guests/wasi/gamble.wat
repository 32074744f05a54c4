;; Requests sixteen megabytes of random numbers, 16 KiB at a time, and passes: little fuel for the guest, work for
;; the host.
(import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
;; ---
(func (export "coroner:policy/rules@0.1.0#rule") (param i32) (result i32)
  (local $at i32) (local $turn i32)
  (loop $on
    (drop (call $random (i32.const 32768) (i32.const 16384)))
    (local.set $turn (i32.add (local.get $turn) (i32.const 1)))
    (br_if $on (i32.lt_u (local.get $turn) (i32.const 1000))))
  (local.set $at (call $grow (i32.const 64)))
  (memory.fill (local.get $at) (i32.const 0) (i32.const 64))
  (local.get $at))
