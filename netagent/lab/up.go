package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// logTail is how much of a log a failed `up` prints.
const logTail = 8

// up starts a lab and waits until all of it works.
func up(ctx context.Context, o *Options, manifests []string, out io.Writer) error {
	if err := o.validate(); err != nil {
		return err
	}
	if err := extendPath(); err != nil { // the daemon and its programs inherit it
		return err
	}
	if err := preconditions(o); err != nil {
		return err
	}
	files, err := readManifests(manifests)
	if err != nil {
		return err
	}
	begun := time.Now()
	o.Created = begun.Truncate(time.Second)
	if err := prepare(o, files); err != nil {
		return err
	}
	fmt.Fprintf(out, "lab %s: %d nodes, %s, overlay %s, %d manifest files\n", o.Name, o.Nodes, o.Family, o.Backend, len(files))
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("not ready after %s", o.Timeout))
	defer cancel()
	if err := startDaemon(ctx, o); err != nil {
		return o.failed(nil, err)
	}
	last, err := o.await(ctx, newProgress(out))
	if err != nil {
		return o.failed(last, err)
	}
	fmt.Fprintf(out, "lab %s is up after %s: %d nodes, %d pods, %d services\n", o.Name,
		time.Since(begun).Round(100*time.Millisecond), len(last.Nodes), last.Pods, last.Services)
	if n := len(last.Problems); n > 0 {
		return fmt.Errorf("lab %s is up without %d broken documents of its manifests:\n%s", o.Name, n, strings.Join(last.Problems, "\n"))
	}
	return nil
}

// preconditions names the first thing the machine lacks, and how to get it.
func preconditions(o *Options) error {
	if os.Geteuid() != 0 {
		return errors.New("lab up needs root to make network namespaces: run it with sudo")
	}
	for _, program := range []string{"netagent", "coredns", "braid"} {
		if _, err := exec.LookPath(o.bin(program)); err != nil {
			return fmt.Errorf("%s is not there: run `make build`", o.bin(program))
		}
	}
	if o.Corefile == "" {
		for _, dir := range []string{filepath.Dir(o.BinDir), o.BinDir} {
			if f := filepath.Join(dir, "Corefile.example"); o.Corefile == "" && exists(f) {
				o.Corefile = f
			}
		}
	}
	if !exists(o.Corefile) {
		return fmt.Errorf("no Corefile.example beside %s: give CoreDNS's configuration with --corefile", o.BinDir)
	}
	if o.ServiceMode == "iptables" {
		for _, tool := range []string{"iptables-restore", "ip6tables-restore"} {
			if _, err := exec.LookPath(tool); err != nil {
				return fmt.Errorf("--service-mode iptables needs %s: install the package iptables", tool)
			}
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// prepare makes the lab's folder. Making the folder is also what keeps two labs from having one name.
func prepare(o *Options, files []manifestFile) (err error) {
	p := o.paths()
	corefile, err := os.ReadFile(o.Corefile)
	if err != nil {
		return fmt.Errorf("lab %s: CoreDNS's configuration: %w", o.Name, err)
	}
	if err := os.MkdirAll(stateRoot, 0o755); err != nil {
		return fmt.Errorf("lab %s: %w", o.Name, err)
	}
	err = os.Mkdir(p.dir(), 0o755)
	if err == nil {
		defer func() {
			if err != nil {
				err = errors.Join(err, os.RemoveAll(p.dir()))
			}
		}()
	}
	spaces, nsErr := p.namespaces()
	if os.IsExist(err) || len(spaces) > 0 {
		return fmt.Errorf("lab %s is up already, or its remains are there: `netagent lab down --name %[1]s` removes it", o.Name)
	}
	if err := errors.Join(err, nsErr, makeDirs(p.logs(), p.manifests())); err != nil {
		return fmt.Errorf("lab %s: %w", o.Name, err)
	}
	if err := writeFile(p.corefile(), corefile); err != nil {
		return fmt.Errorf("lab %s: %w", o.Name, err)
	}
	if err := o.keepManifests(files); err != nil {
		return fmt.Errorf("lab %s: %w", o.Name, err)
	}
	return o.save()
}

// startDaemon starts the daemon detached from this process and waits until its socket answers.
func startDaemon(ctx context.Context, o *Options) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	log, err := os.OpenFile(o.paths().daemonLog(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	c := exec.Command(o.bin("netagent"), append([]string{"lab"}, daemonArgs(o.Name)...)...)
	c.Stdout, c.Stderr, c.ExtraFiles, c.Dir = log, log, []*os.File{w}, "/"
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = c.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start the daemon: %v", err)
	}
	go func() { _ = c.Wait() }() // its end is seen at the pipe and the socket; this only reaps it
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Now()) })
	defer stop()
	said, err := io.ReadAll(r)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("hear from the daemon: %w", err)
	case string(said) != "ready\n":
		return errors.New("the daemon ended before it was ready")
	}
	return nil
}

// await follows the daemon's status until the lab is up. It returns the last status it saw.
func (o *Options) await(ctx context.Context, p *progress) (last *Status, err error) {
	c, err := newClient(o.Name)
	if err != nil {
		return nil, err
	}
	resp, err := c.do(ctx, "GET", "/watch", nil)
	if err != nil {
		return nil, cmpErr(context.Cause(ctx), err)
	}
	defer resp.Body.Close()
	defer p.end()
	for dec := json.NewDecoder(resp.Body); ; {
		var s Status
		if err := dec.Decode(&s); err != nil {
			return last, cmpErr(context.Cause(ctx), errors.New("the daemon ended"))
		}
		last = &s
		p.show(last)
		switch s.Phase {
		case PhaseUp:
			return last, nil
		case PhaseFailed:
			return last, errors.New(s.Error)
		}
	}
}

// cmpErr returns the first error that is one.
func cmpErr(errs ...error) error {
	i := slices.IndexFunc(errs, func(err error) bool { return err != nil })
	if i < 0 {
		return nil
	}
	return errs[i]
}

// failed explains why a lab did not come up: what is not ready, and the end of the log that tells.
func (o *Options) failed(s *Status, err error) error {
	p := o.paths()
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("lab %s: interrupted; it goes on starting: `netagent lab status --name %[1]s` shows it, `netagent lab down --name %[1]s` removes it", o.Name)
	}
	lines := []string{fmt.Sprintf("lab %s did not come up: %v", o.Name, err)}
	log := p.daemonLog()
	if s != nil {
		const most = 10
		troubles := s.troubles()
		for _, t := range troubles[:min(most, len(troubles))] {
			lines = append(lines, "  not ready: "+t)
		}
		if len(troubles) > most {
			lines = append(lines, fmt.Sprintf("  and %d more", len(troubles)-most))
		}
		for _, n := range s.Nodes {
			if !n.Agent.Ready && n.Agent.Log != "" && s.Phase != PhaseFailed {
				log = n.Agent.Log
				break
			}
			if !n.DNS.Ready && n.DNS.Log != "" && s.Phase != PhaseFailed {
				log = n.DNS.Log
			}
		}
	}
	if tail := lastLines(log, logTail); len(tail) > 0 {
		lines = append(lines, "last lines of "+log+":")
		for _, l := range tail {
			lines = append(lines, "  "+l)
		}
	}
	lines = append(lines, fmt.Sprintf("logs: %s; `netagent lab down --name %s` removes the lab", p.logs(), o.Name))
	return errors.New(strings.Join(lines, "\n"))
}
