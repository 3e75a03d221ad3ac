//! Tests against programs that others wrote. `tests/setup` installs them; one that is missing fails its tests.

mod guards;
