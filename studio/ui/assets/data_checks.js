// Buttons inside server-made HTML: a click becomes the event named by data-act. The HTML is made
// anew with each answer, so the button that had the focus is found again by what it does.
const ACTS = ['show', 'hide', 'near', 'fix', 'row', 'mend'];
let last = null;
// The list that is open: a search or a count that ends brings the panel as it was when it began.
let open = null;
const setOf = () => { const link = element.querySelector('a[download]'); return link ? link.getAttribute('href').split('/')[2] : ''; };
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-act]');
  if (!button || !ACTS.includes(button.dataset.act)) return;
  last = {act: button.dataset.act, check: (button.dataset.check || '').split(':')[0]};
  if (button.dataset.act === 'show') open = {check: button.dataset.check, set: setOf(), again: false};
  if (button.dataset.act === 'hide') open = null;
  trigger(button.dataset.act, {check: button.dataset.check || ''});
});
function openAgain() {
  if (!open) return;
  const name = open.check.split(':')[0];
  const button = (act) => [...element.querySelectorAll(`button[data-act=${act}]`)]
    .some((node) => (node.dataset.check || '').split(':')[0] === name);
  if (button('hide')) open.again = false;
  else if (open.set !== setOf() || open.again || !button('show')) open = null;
  else { open.again = true; trigger('show', {check: open.check}); }
}
watch('value', () => {
  openAgain();
  if (!last || document.activeElement && document.activeElement !== document.body) return;
  const wanted = last.act === 'show' ? 'hide' : last.act === 'hide' ? 'show' : last.act;
  const same = [...element.querySelectorAll('button[data-act]')]
    .filter((node) => (node.dataset.check || '').split(':')[0] === last.check);
  const next = same.find((node) => node.dataset.act === wanted) || same[0];
  if (next) next.focus({preventScroll: true});
});
