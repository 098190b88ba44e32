// Package dir fills a model.Store from a folder of ordinary Kubernetes manifests (or one file), and
// follows its changes: edits, renames, atomic swaps of symbolic links as ConfigMap volumes do them,
// and the folder itself going and coming back.
//
// A broken document is reported with file:line and what was expected; the last good version of its
// object stays in force and the other documents take effect. Of files that give the same object the
// first in name order counts. All that changed between two looks at the folder reaches the store
// as one batch, so an object that moves from one file to another is never away in between.
package dir

import (
	"context"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source"
)

// Problem is something in the folder that could not be used.
type Problem = source.Problem

// Options tune Run. The zero value is fine.
type Options struct {
	Logger *slog.Logger
	// Problems is called with all current problems, sorted by text, each time they change. It is
	// called by Run's goroutine, for what is wrong at the start before the store is marked synced; the
	// slice is the caller's.
	Problems func([]Problem)
	// Rescan is how often the folder is looked at without being told of a change, because the kernel
	// may drop notifications. Zero means 30 s.
	Rescan time.Duration
	// Quiet is how long the folder must be at rest after a change before it is read, so that a file is
	// not read while it is written; it is read after 10 times that in any case. Zero means 20 ms.
	Quiet time.Duration
}

// gonePoll is how often a folder that went is looked for.
const gonePoll = time.Second

// Run reads the manifests at path, a folder (*.yaml, *.yml, *.json; not its sub-folders, not hidden
// files) or one file, into the store, marks it synced, and follows the changes until ctx is done. It
// returns an error when path cannot be read at the start; later it only reports that and keeps what
// was read last.
func Run(ctx context.Context, path string, store *model.Store, opts Options) error {
	s := &follower{
		path:    filepath.Clean(path),
		store:   store,
		opts:    opts,
		log:     opts.Logger,
		scanner: scanner{path: filepath.Clean(path), stamps: map[string]stamp{}},
		book:    newBook(),
		told:    map[string]bool{},
		listed:  map[[2]string]bool{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.board = source.NewBoard(s.log, opts.Problems)
	if s.opts.Rescan <= 0 {
		s.opts.Rescan = 30 * time.Second
	}
	if s.opts.Quiet <= 0 {
		s.opts.Quiet = 20 * time.Millisecond
	}
	return s.run(ctx)
}

// follower keeps a store equal to a folder.
type follower struct {
	path    string
	store   *model.Store
	opts    Options
	log     *slog.Logger
	scanner scanner
	book    *book
	watch   watcher
	gone    error // why the folder cannot be read now
	board   *source.Board
	told    map[string]bool    // keys of warnings that were logged and still hold
	listed  map[[2]string]bool // apiVersion and kind of unknown kinds that were logged
}

func (s *follower) run(ctx context.Context) error {
	start := time.Now()
	s.log.Info("reading manifests", "path", s.path)
	abs, err := filepath.Abs(s.path)
	if err != nil {
		return explain(s.path, err)
	}
	s.watch = watcher{path: abs, dirs: map[string]fs.FileInfo{}}
	var events <-chan fsnotify.Event
	var lost <-chan error
	if w, err := fsnotify.NewWatcher(); err == nil {
		defer w.Close()
		s.watch.fs, events, lost = w, w.Events, w.Errors
	} else {
		s.log.Warn("no file notifications: looking at the manifests every second instead; raise fs.inotify.max_user_instances", "err", err)
		s.opts.Rescan = min(s.opts.Rescan, time.Second)
	}
	if err := s.look(); err != nil {
		return explain(s.path, err)
	}
	s.report()
	s.store.MarkSynced()
	s.log.Info("manifests read", "path", s.path, "files", len(s.book.files), "objects", len(s.book.claims),
		"problems", s.board.Len(), "took", time.Since(start))
	s.loop(ctx, events, lost)
	return nil
}

// loop looks again after each burst of events, and slowly for ever.
func (s *follower) loop(ctx context.Context, events <-chan fsnotify.Event, lost <-chan error) {
	timer := time.NewTimer(s.pause())
	defer timer.Stop()
	var burst time.Time // when the first unhandled event came
	for {
		select {
		case <-ctx.Done():
			return
		case ev := <-events:
			if !s.watch.relevant(ev) {
				continue
			}
			now := time.Now()
			if burst.IsZero() {
				burst = now
			}
			timer.Reset(max(0, min(s.opts.Quiet, burst.Add(10*s.opts.Quiet).Sub(now))))
		case err := <-lost:
			s.log.Warn("file notifications were lost: looking at all manifests", "path", s.path, "err", err)
			burst = time.Now()
			timer.Reset(s.opts.Quiet)
		case <-timer.C:
			burst = time.Time{}
			s.gone = s.look()
			s.report()
			timer.Reset(s.pause())
		}
	}
}

func (s *follower) pause() time.Duration {
	if s.gone != nil {
		return min(s.opts.Rescan, gonePoll)
	}
	return s.opts.Rescan
}

// look reads what changed and applies it as one batch. Folders found on the way are watched; since
// something may have happened in them before, it looks again until there is none new.
func (s *follower) look() error {
	for range 10 {
		began := time.Now()
		found, err := s.scanner.scan()
		if err != nil {
			s.watch.follow(nil, true)
			return err
		}
		missed := s.watch.follow(found.present, found.folder)
		s.take(found)
		if !missed {
			s.store.MarkCurrent(began)
			break
		}
	}
	return nil
}

// take brings book and store to what a scan found.
func (s *follower) take(found *scan) {
	for name := range s.book.files {
		if !found.present[name] {
			s.book.set(name, nil)
		}
	}
	for name, data := range found.changed {
		f, strangers := decode(name, data, s.book.files[name])
		s.book.set(name, f)
		s.list(strangers)
	}
	for name, err := range found.failed {
		f := &file{notices: []notice{{key: name + "|unreadable", text: explain(name, err).Error()}}}
		if old := s.book.files[name]; old != nil {
			f.given = old.given
		}
		s.book.set(name, f)
	}
	if updates := s.book.flush(); len(updates) > 0 {
		s.store.Apply(updates)
	}
}

// list logs each unknown kind the first time it is met.
func (s *follower) list(strangers []unknown) {
	for _, u := range strangers {
		id := [2]string{u.apiVersion, u.kind}
		if !s.listed[id] {
			s.listed[id] = true
			s.log.Info("kind not used here, all its documents are skipped", "apiVersion", u.apiVersion, "kind", u.kind, "first", u.place)
		}
	}
}

// report tells what is wrong now, and logs warnings that are new.
func (s *follower) report() {
	problems, told := map[string]string{}, map[string]bool{}
	for _, n := range s.book.notices() {
		if !n.warning {
			problems[n.key] = n.text
			continue
		}
		if told[n.key] = true; !s.told[n.key] {
			s.log.Warn("manifest used, with a warning", "warning", n.text)
		}
	}
	if s.gone != nil {
		problems["gone"] = explain(s.path, s.gone).Error() + "; what it held last stays in force"
	}
	s.told = told
	s.board.Replace(problems)
}
