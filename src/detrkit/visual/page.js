// All scripts of a page: its policy allows no other.

// tables: a click on a head sorts
document.querySelectorAll('th button').forEach(function (button) {
  button.addEventListener('click', function () {
    var head = button.parentElement, row = head.parentElement, body = head.closest('table').tBodies[0];
    var column = Array.prototype.indexOf.call(row.children, head);
    var first = head.classList.contains('text') ? 'ascending' : 'descending';
    var order = head.getAttribute('aria-sort');
    order = order ? (order === 'ascending' ? 'descending' : 'ascending') : first;
    Array.prototype.forEach.call(row.children, function (other) { other.removeAttribute('aria-sort'); });
    head.setAttribute('aria-sort', order);
    var sign = order === 'ascending' ? 1 : -1;
    Array.from(body.rows).sort(function (a, b) {
      var x = a.cells[column], y = b.cells[column];
      var p = x.dataset.v, q = y.dataset.v;
      if (p !== undefined && q !== undefined) return sign * (p - q);
      if (p !== undefined || q !== undefined) return p === undefined ? 1 : -1;
      return sign * x.textContent.localeCompare(y.textContent, undefined, {numeric: true});
    }).forEach(function (line) { body.appendChild(line); });
  });
});

// charts: what is under the pointer, and lines switched off
document.querySelectorAll('.chart').forEach(function (figure) {
  var svg = figure.querySelector('svg'), tip = figure.querySelector('.tip'), at = -1;
  var marks = Array.from(svg.querySelectorAll('[data-tip]')), columns = parseInt(svg.dataset.columns, 10);
  function show(place) {
    if (at >= 0) marks[at].classList.remove('at');
    at = place;
    tip.hidden = at < 0;
    if (at < 0) return;
    marks[at].classList.add('at');
    tip.textContent = marks[at].dataset.tip;
    var box = marks[at].getBoundingClientRect(), all = figure.getBoundingClientRect();
    var across = (box.left + box.right) / 2 - all.left, right = across > all.width / 2;
    tip.style.left = right ? 'auto' : Math.max(0, across + 12) + 'px';
    tip.style.right = right ? Math.max(0, all.width - across + 12) + 'px' : 'auto';
    tip.style.top = Math.max(0, box.top - all.top - (columns > 1 ? 34 : 0)) + 'px';
  }
  svg.addEventListener('pointermove', function (event) {
    show(marks.indexOf(event.target.closest('[data-tip]')));
  });
  svg.addEventListener('pointerleave', function () { show(-1); });
  svg.addEventListener('blur', function () { show(-1); });
  svg.addEventListener('keydown', function (event) {
    var moves = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -1e9, End: 1e9};
    var move = moves[event.key];
    if (!move || !marks.length) return;
    event.preventDefault();
    show(Math.max(0, Math.min(marks.length - 1, at < 0 ? 0 : at + move)));
  });
});
document.querySelectorAll('.legend button').forEach(function (button) {
  button.addEventListener('click', function () {
    var on = button.getAttribute('aria-pressed') === 'true';
    document.querySelectorAll('[data-name]').forEach(function (item) {
      if (item.dataset.name !== button.dataset.name) return;
      if (item.tagName === 'BUTTON') item.setAttribute('aria-pressed', String(!on));
      else item.classList.toggle('off', on);
    });
  });
});

// galleries that can be narrowed down
document.querySelectorAll('.filter-gallery').forEach(function (gallery) {
  var bar = gallery.querySelector('.filters'), grid = gallery.querySelector('.gallery');
  var choices = Array.from(bar.querySelectorAll('select[data-tag]')), order = bar.querySelector('[data-order]');
  var count = bar.querySelector('output'), items = Array.from(grid.children);
  var tags = items.map(function (item) { return item.dataset.t.split(' '); });
  var numbers = items.map(function (item) { return item.dataset.n.split(' ').map(parseFloat); });
  function update() {
    var shown = 0, places = items.map(function (item, place) { return place; });
    items.forEach(function (item, place) {
      var fits = choices.every(function (choice) {
        return choice.value === '' || tags[place][choice.dataset.tag] === choice.value;
      });
      item.hidden = !fits;
      shown += fits;
    });
    if (order.value !== '') {
      var column = parseInt(order.value.slice(1), 10), sign = order.value[0] === '-' ? -1 : 1;
      places.sort(function (a, b) {
        var x = numbers[a][column], y = numbers[b][column];
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || a - b;
        return sign * (x - y) || a - b;
      });
    }
    places.forEach(function (place) { grid.appendChild(items[place]); });
    count.textContent = shown + ' of ' + items.length + ' shown';
  }
  bar.addEventListener('change', update);
  bar.querySelector('button').addEventListener('click', function () {
    choices.concat(order).forEach(function (choice) { choice.value = ''; });
    update();
  });
  bar.hidden = false;
  update();
});
