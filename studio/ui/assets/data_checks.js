// Buttons inside server-made HTML: a click becomes the event named by data-act. The HTML is made
// anew with each answer, so the button that had the focus is found again by what it does.
const ACTS = ['show', 'hide', 'near', 'fix', 'row', 'mend'];
let last = null;
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-act]');
  if (!button || !ACTS.includes(button.dataset.act)) return;
  last = {act: button.dataset.act, check: (button.dataset.check || '').split(':')[0]};
  trigger(button.dataset.act, {check: button.dataset.check || ''});
});
watch('value', () => {
  if (!last || document.activeElement && document.activeElement !== document.body) return;
  const wanted = last.act === 'show' ? 'hide' : last.act === 'hide' ? 'show' : last.act;
  const same = [...element.querySelectorAll('button[data-act]')]
    .filter((node) => (node.dataset.check || '').split(':')[0] === last.check);
  const next = same.find((node) => node.dataset.act === wanted) || same[0];
  if (next) next.focus({preventScroll: true});
});
