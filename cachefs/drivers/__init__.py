"""The kernel's side: each driver translates one kernel interface to `cachefs.filesystem` and back."""
