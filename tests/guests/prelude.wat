;; What every bad guest shares: a contract kept to the letter everywhere but where its own file breaks it.
;; Memory: 1024 name, 1032 version, 1088 description, 1152 an empty ok; the bump allocator starts at 4096.
(import "coroner:policy/log@0.1.0" "log" (func $log (param i32 i32 i32)))
(memory (export "memory") 1)
(global $next (mut i32) (i32.const 4096))
(data (i32.const 1024) "guest")
(data (i32.const 1032) "0.0.1")
(func $grow (param $bytes i32) (result i32)
  (local $at i32)
  (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
  (global.set $next (i32.add (local.get $at) (local.get $bytes)))
  (block $enough (loop $more
    (br_if $enough (i32.le_u (global.get $next) (i32.mul (memory.size) (i32.const 65536))))
    (br_if $enough (i32.eq (memory.grow (i32.const 1)) (i32.const -1)))
    (br $more)))
  (local.get $at))
(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (call $grow (local.get 3)))
(func (export "coroner:policy/rules@0.1.0#describe") (result i32)
  (i32.store (i32.const 1088) (i32.const 1024)) (i32.store (i32.const 1092) (i32.const 5))
  (i32.store (i32.const 1096) (i32.const 1032)) (i32.store (i32.const 1100) (i32.const 5))
  ;; wants: all six kinds. needs: nothing. No schema.
  (i32.store8 (i32.const 1104) (i32.const 63)) (i32.store16 (i32.const 1106) (i32.const 0))
  (i32.store8 (i32.const 1108) (i32.const 0))
  (i32.const 1088))
