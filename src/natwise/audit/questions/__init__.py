"""One file per question of the audit: ``answer(context, deadline) -> Result``; `natwise.audit.plan` orders them."""
