from tests.fakes.score_run import fake_run, three

__all__ = ["fake_run", "three"]
