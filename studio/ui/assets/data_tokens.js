// Tokens of a row: pointing at one, or the arrow keys, show its number and text. Numbers stand in
// data-ids of the container, in the order of the elements.
let chosen = null;
const box = () => element.querySelector('.tokens');
function name(token) {
  const all = box(), place = Array.prototype.indexOf.call(all.children, token);
  const kind = token.classList.contains('x') ? 'cut off' : token.classList.contains('t') ? 'learned' : 'context';
  const special = token.classList.contains('s') ? ', special' : '';
  return 'Token ' + (place + 1).toLocaleString('en') + ': number ' + (all.dataset.ids.split(',')[place] || '?')
    + ', ' + JSON.stringify(token.textContent) + ' (' + kind + special + ')';
}
function choose(token, byKey) {
  if (chosen) chosen.classList.remove('on');
  chosen = token;
  if (!token) return;
  token.classList.add('on');
  const text = name(token);
  token.title = text;
  element.querySelector('.token-note').textContent = text;
  if (byKey) token.scrollIntoView({block: 'nearest', inline: 'nearest'});
}
element.addEventListener('mouseover', (event) => {
  const token = event.target.closest('.tokens > i');
  if (token && token !== chosen) choose(token, false);
});
element.addEventListener('click', (event) => {
  const token = event.target.closest('.tokens > i');
  if (token) choose(token, false);
});
element.addEventListener('focusin', (event) => {
  if (event.target === box() && !chosen) choose(box().firstElementChild, true);
});
element.addEventListener('keydown', (event) => {
  const all = box();
  if (event.target !== all || !all.children.length) return;
  const steps = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10};
  const tokens = all.children, last = tokens.length - 1;
  let place = chosen ? Array.prototype.indexOf.call(tokens, chosen) : -1;
  if (event.key in steps) place = Math.max(0, Math.min(last, place + steps[event.key]));
  else if (event.key === 'Home') place = 0;
  else if (event.key === 'End') place = last;
  else return;
  event.preventDefault();
  choose(tokens[place], true);
});
watch('value', () => { chosen = null; });
