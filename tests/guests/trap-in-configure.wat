;; Traps when it is configured.
(func (export "coroner:policy/rules@0.1.0#configure") (param i32 i32) (result i32) unreachable)
(func (export "coroner:policy/rules@0.1.0#rule") (param i32) (result i32)
  unreachable)
