//! A simulated machine that follows the kernel's rules and errnos.
