"""The program listen: a blind listening test in the browser, and the report on its results."""

import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from etude.run.command import one_line_errors
from etude.studio.options import Options

if TYPE_CHECKING:
    from etude.studio.results import Results


@one_line_errors
def listen(cfg: DictConfig) -> None:
    """Serves the listening test until Ctrl-C, or reports on the answers so far."""
    from etude.studio.results import Results

    options = Options.checked(cfg)
    if options.report:
        from etude.studio.report import show

        show(Results(options.results_file, make=False))
    else:
        _serve(options, Results(options.results_file))


def _serve(options: Options, results: "Results") -> None:
    from etude.core.stopping import Stopped
    from etude.studio.server import ListeningServer
    from etude.studio.sessions import ListeningTest

    with TemporaryDirectory(prefix="etude_listen_") as folder:
        test = ListeningTest(options, results, Path(folder))
        test.try_out()
        server = ListeningServer(test, options.port)
        print(f"listening test: {server.address} (Ctrl-C ends it)", flush=True)
        ended_by: int = signal.SIGINT
        try:
            server.serve_forever()
        except Stopped as stopped:
            ended_by = stopped.number
        finally:
            server.finish()
        print(f"ended: {test.summary()}; `etude listen report=true` shows what they say", file=sys.stderr)
    if ended_by != signal.SIGINT:
        sys.exit(128 + ended_by)
