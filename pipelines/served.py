"""The model that MLflow serves of a run: it runs this file, which it has copied beside the fit."""

from typing import Any

import mlflow
import numpy as np
import pandas as pd

import dfolora


class Served(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined,misc]  # of no known type
    """Labels and probabilities for rows of texts, by what a run fitted."""

    def load_context(self, context: Any) -> None:
        """Load what was fitted, and its base model from where that was."""
        self._fitted = dfolora.load(context.artifacts["fitted"])

    def predict(self, context: Any, model_input: pd.DataFrame) -> pd.DataFrame:
        """A row for each row: ``label``, and ``probability_CLASS`` of each class.

        All are None where the model gave NaN or infinity.
        """
        names = [str(name) for name in self._fitted.classes_]
        rows = model_input if model_input.shape[1] > 1 else model_input.iloc[:, 0]
        try:
            shares = self._fitted.predict_proba(rows)
        except dfolora.UserError as error:  # what is wrong with the rows
            raise mlflow.MlflowException.invalid_parameter_value(str(error)) from error
        answers = pd.DataFrame(shares, columns=[f"probability_{name}" for name in names])
        answers.insert(0, "label", [names[best] for best in shares.argmax(-1)])
        answers[np.isnan(shares).any(-1)] = None
        return answers


mlflow.models.set_model(Served())
