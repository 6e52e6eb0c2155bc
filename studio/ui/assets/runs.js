// Runs table: a row's button, or anywhere in its row, chooses the run.
element.addEventListener('click', (event) => {
  const row = event.target.closest('tr');
  const button = row && row.querySelector('button[data-run]');
  if (button) trigger('choose', {run: button.dataset.run});
});
