"""`schedd jobs`."""

from __future__ import annotations

import time

from schedd.cli.exits import Exit
from schedd.cli.session import Session, client_command

EXAMPLES = """
schedd jobs
schedd jobs --json | jq '.[] | select(.states.failed > 0) | .name'
"""


@client_command("jobs", examples=EXAMPLES)
async def jobs_command(session: Session) -> Exit:
    """List the jobs with their tasks counted by state."""
    from schedd.cli.views import JOB_COLUMNS, job_row

    async with session.connect() as client:
        jobs = await client.jobs()
    if session.out.as_json:
        session.out.json(jobs)
    elif session.out.quiet:
        session.out.lines(job.name for job in jobs if job.name)
    elif jobs:
        now = time.time()
        session.out.table(JOB_COLUMNS, [job_row(job, now) for job in jobs])
        for job in jobs:
            for reason in job.held_kinds.values():
                session.out.text(f"{job.name} is held: {reason}")
    else:
        session.out.say("no jobs")
    return Exit.OK
