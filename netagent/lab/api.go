package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/netagent/lab/cluster"
)

// The requests of the daemon's socket. Answers are JSON; an error is {"error": "…"} with status 4xx.
type (
	filesRequest struct {
		Files []manifestFile `json:"files"`
	}
	reportAnswer struct {
		Changes  []string `json:"changes"`  // one per object, as kubectl prints them
		Notes    []string `json:"notes"`    // of what is in force and yet worth a word
		Problems []string `json:"problems"` // one per document that could not be used, beginning with file:line
	}
	killRequest struct {
		Target string `json:"target"` // node/NODE, node/NODE/PROGRAM or pod/NAMESPACE/NAME
		Signal string `json:"signal"` // such as KILL, for programs
	}
	readyRequest struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
		Ready     bool   `json:"ready"`
	}
	errorAnswer struct {
		Error string `json:"error"`
	}
)

func (d *daemon) handler() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /watch", d.serveWatch)
	m.HandleFunc("GET /status", answering(func(context.Context, struct{}) (Status, error) { return d.status(), nil }))
	m.HandleFunc("GET /pods", answering(func(context.Context, struct{}) ([]cluster.PodStatus, error) { return d.listPods() }))
	m.HandleFunc("POST /apply", answering(func(ctx context.Context, r filesRequest) (a reportAnswer, err error) {
		return a, d.whenUp(func() error { a = change(ctx, r.Files, d.ctl.Apply); return nil })
	}))
	m.HandleFunc("POST /delete", answering(func(ctx context.Context, r filesRequest) (a reportAnswer, err error) {
		return a, d.whenUp(func() error { a = change(ctx, r.Files, d.ctl.Delete); return nil })
	}))
	m.HandleFunc("POST /kill", answering(func(ctx context.Context, r killRequest) (struct{}, error) { return struct{}{}, d.kill(ctx, r) }))
	m.HandleFunc("POST /ready", answering(func(_ context.Context, r readyRequest) (struct{}, error) {
		return struct{}{}, d.whenUp(func() error { return d.ctl.SetReady(r.Namespace, r.Name, r.Ready) })
	}))
	return m
}

// answering makes a handler of a function from request to answer.
func answering[Q, A any](f func(context.Context, Q) (A, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		var q Q
		if r.Method == http.MethodPost {
			if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
				w.WriteHeader(http.StatusBadRequest)
				_ = json.NewEncoder(w).Encode(errorAnswer{err.Error()})
				return
			}
		}
		a, err := f(r.Context(), q)
		if err != nil {
			w.WriteHeader(http.StatusConflict)
			_ = json.NewEncoder(w).Encode(errorAnswer{err.Error()})
			return
		}
		_ = json.NewEncoder(w).Encode(a) // the client has gone: nobody to tell
	}
}

// serveWatch writes the status now and after every change, one JSON object per line.
func (d *daemon) serveWatch(w http.ResponseWriter, r *http.Request) {
	enc, rc := json.NewEncoder(w), http.NewResponseController(w)
	for {
		next := d.next()
		if enc.Encode(d.status()) != nil || rc.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-next:
		}
	}
}

// whenUp runs f once there is a cluster to change.
func (d *daemon) whenUp(f func() error) error {
	d.mu.Lock()
	phase := d.phase
	d.mu.Unlock()
	if phase == PhaseNetwork || phase == PhaseFailed {
		return fmt.Errorf("the lab is %s: see `netagent lab status`", phase)
	}
	return f()
}

func (d *daemon) listPods() (pods []cluster.PodStatus, err error) {
	return pods, d.whenUp(func() error {
		pods = d.ctl.Pods()
		return nil
	})
}

// change applies or deletes manifests one after the other and gathers what became of them.
func change(ctx context.Context, files []manifestFile, do func(context.Context, string, []byte) (cluster.Report, error)) (a reportAnswer) {
	for _, f := range files {
		r, err := do(ctx, f.Name, f.Data)
		for _, c := range r.Changes {
			a.Changes = append(a.Changes, c.String())
		}
		a.Notes = append(a.Notes, r.Warnings...)
		if len(r.Ignored) > 0 {
			a.Notes = append(a.Notes, fmt.Sprintf("%s: kinds that mean nothing to the network are left out: %s", f.Name, strings.Join(r.Ignored, ", ")))
		}
		if err != nil {
			a.Problems = append(a.Problems, strings.Split(err.Error(), "\n")...)
		}
	}
	return a
}

func (d *daemon) kill(ctx context.Context, r killRequest) error {
	return d.whenUp(func() error {
		kind, rest, _ := strings.Cut(r.Target, "/")
		first, second, ok := strings.Cut(rest, "/")
		switch {
		case kind == "pod" && ok:
			return d.ctl.KillPod(first, second)
		case kind == "node" && ok:
			i := slices.IndexFunc(d.programs, func(p *program) bool { return p.String() == r.Target })
			sig := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(r.Signal), "SIG"))
			switch {
			case i < 0:
				return fmt.Errorf("no program %s: targets are node/NODE/netagent and node/NODE/coredns, NODE being n1 to n%d", r.Target, d.o.Nodes)
			case sig == 0:
				return fmt.Errorf("no signal %q: use names such as TERM or KILL", r.Signal)
			}
			return d.programs[i].signal(sig)
		case kind == "node":
			return d.loseNode(ctx, rest)
		}
		return fmt.Errorf("no such target %q: use node/NODE, node/NODE/netagent, node/NODE/coredns or the name of a pod", r.Target)
	})
}

// client talks to the daemon of a lab.
type client struct {
	lab  string
	http *http.Client
}

func newClient(lab string) (*client, error) {
	if _, err := loadOptions(lab); err != nil {
		return nil, err
	}
	socket := paths{lab}.socket()
	return &client{lab, &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}, nil
}

// do sends one request and returns the response when the daemon says it went well.
func (c *client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var in io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		in = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, in)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if errors.Is(err, os.ErrPermission) {
			return nil, fmt.Errorf("lab %s belongs to root: run this with sudo", c.lab)
		}
		return nil, fmt.Errorf("lab %s: its daemon does not answer (%w): see %s, or remove it with `netagent lab down --name %[1]s`",
			c.lab, errors.Unwrap(err), paths{c.lab}.daemonLog())
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var e errorAnswer
	if json.NewDecoder(resp.Body).Decode(&e) != nil || e.Error == "" {
		e.Error = resp.Status
	}
	return nil, fmt.Errorf("lab %s: %s", c.lab, e.Error)
}

// call is do with the answer decoded.
func (c *client) call(ctx context.Context, method, path string, body, answer any) error {
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(answer)
}
