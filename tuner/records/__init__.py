"""The study's own database: the truth that samplers, mirrors and reports are rebuilt from."""
