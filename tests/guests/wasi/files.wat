;; Opens a file.
(import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
;; ---
(func (export "coroner:policy/rules@0.1.0#rule") (param i32) (result i32)
  (call $open (i32.const 3) (i32.const 0) (i32.const 1024) (i32.const 5) (i32.const 0) (i64.const 0) (i64.const 0)
    (i32.const 0) (i32.const 1408)))
