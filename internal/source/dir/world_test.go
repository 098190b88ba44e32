package dir

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/model"
)

// svc is the manifest of a service; ip may be something that is no address.
func svc(name, ip string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata:\n  name: %s\nspec:\n  clusterIP: %q\n", name, ip)
}

func docs(list ...string) string { return strings.Join(list, "---\n") }

// world is a folder, a store that follows it, and what woke up since.
type world struct {
	t       *testing.T
	dir     string
	store   *model.Store
	stirred chan struct{}

	mu       sync.Mutex
	problems []Problem
	logged   bytes.Buffer
	batches  [][]model.Change
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: filepath.Join(t.TempDir(), "manifests"), store: model.NewStore(), stirred: make(chan struct{}, 1)}
	w.must(os.Mkdir(w.dir, 0o755))
	w.store.Subscribe(func(_ uint64, c []model.Change) {
		w.mu.Lock()
		w.batches = append(w.batches, c)
		w.mu.Unlock()
		w.stir()
	})
	return w
}

func (w *world) stir() {
	select {
	case w.stirred <- struct{}{}:
	default:
	}
}

// Write takes in log lines.
func (w *world) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.logged.Write(p)
}

func (w *world) options() Options {
	return Options{
		Logger: slog.New(slog.NewTextHandler(w, nil)),
		Quiet:  2 * time.Millisecond,
		Rescan: time.Hour, // so that only notifications can tell of a change
		Problems: func(p []Problem) {
			w.mu.Lock()
			w.problems = p
			w.mu.Unlock()
			w.stir()
		},
	}
}

// follow runs the source on path for the length of the test and waits for its first state.
func (w *world) follow(path string) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, path, w.store, w.options()) }()
	select {
	case <-w.store.Synced():
	case err := <-done:
		w.t.Fatalf("Run: %v", err)
	}
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name, text string) {
	w.t.Helper()
	w.must(os.WriteFile(w.path(name), []byte(text), 0o644))
}

// holds returns the stored services as "name=address", sorted.
func (w *world) holds() string {
	var out []string
	for _, o := range w.store.List(model.KindService) {
		s := o.(*model.Service)
		out = append(out, fmt.Sprintf("%s=%s", s.Name, s.ClusterIPs[0]))
	}
	return strings.Join(out, " ")
}

// problem returns the texts of the current problems, without the folder's path.
func (w *world) problem() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var texts []string
	for _, p := range w.problems {
		texts = append(texts, strings.ReplaceAll(p.Text, w.dir+"/", ""))
	}
	return strings.Join(texts, "\n")
}

func (w *world) log() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.logged.String()
}

func (w *world) await(what string, cond func() bool) {
	w.t.Helper()
	deadline := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-w.stirred:
		case <-deadline:
			w.t.Fatalf("waited in vain for %s; store holds %q, problems %q", what, w.holds(), w.problem())
		}
	}
}

func (w *world) awaitStore(want string) {
	w.t.Helper()
	w.await(want, func() bool { return w.holds() == want })
}

func (w *world) awaitProblem(want string) {
	w.t.Helper()
	w.await("problem "+want, func() bool { return w.problem() == want })
}

func (w *world) check(want string) {
	w.t.Helper()
	if got := w.holds(); got != want {
		w.t.Errorf("store holds %q, want %q", got, want)
	}
}
