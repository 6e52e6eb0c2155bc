// A proposal: 'apply' sends the values of its button.
element.addEventListener('click', (event) => {
  const button = event.target.closest('.fit-apply');
  if (!button) return;
  let values = null;
  try { values = JSON.parse(button.dataset.values); } catch (error) { console.info('no values: ' + error); return; }
  button.disabled = true;
  trigger('apply', {values});
});
