"""The program listen: a blind listening test in the browser, and the report on its results."""

import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig

from etude.run.command import one_line_errors
from etude.studio.options import Options


@one_line_errors
def listen(cfg: DictConfig) -> None:
    """Serves the listening test until Ctrl-C, or reports on the answers so far."""
    from etude.studio.results import Results

    options = Options.checked(cfg)
    if options.report:
        from etude.studio.report import show

        show(Results(options.results_file, make=False))
    else:
        _serve(options)


def _serve(options: Options) -> None:
    from etude.core.stopping import Stopped
    from etude.studio.results import Results
    from etude.studio.server import ListeningServer
    from etude.studio.sessions import ListeningTest

    if options.results_file.exists():
        Results(options.results_file)  # what is wrong with it is told before the music is read
    server, ended_by = ListeningServer(options.port), int(signal.SIGINT)
    with TemporaryDirectory(prefix="etude_listen_") as folder, server:
        server.test = ListeningTest(options, Path(folder))
        server.test.draw_ahead()
        print(f"listening test: {server.address} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except Stopped as stopped:
            ended_by = stopped.number
        finally:
            server.finish()
        print(f"ended: {server.test.summary()}; `etude listen report=true` shows what they say", file=sys.stderr)
    if ended_by != signal.SIGINT:
        sys.exit(128 + ended_by)
