;; Starts, and never ends starting.
(func $endless (loop $on (br $on)))
(start $endless)
(func (export "coroner:policy/rules@0.1.0#rule") (param i32) (result i32)
  unreachable)
