package agent

import (
	"context"
	"errors"
	"fmt"
	"github.com/braidnet/braid/netagent/agent/enforce"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Cleanup removes everything that agent and CNI plugin ever made on this node, and nothing else. It
// returns what it removed, also when something failed; it refuses while an agent is running.
func Cleanup(ctx context.Context, c Config) (removed []string, err error) {
	if conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", c.Socket()); err == nil {
		conn.Close()
		return nil, fmt.Errorf("an agent is running (%s answers) and would put everything back: stop it first", c.Socket())
	}
	if !filepath.IsAbs(c.RunDir) || !filepath.IsAbs(c.StateDir) {
		return nil, fmt.Errorf("run-dir and state-dir must be absolute paths, not %q and %q: nothing was removed", c.RunDir, c.StateDir)
	}
	var errs []error
	// First the configuration, so that no runtime makes a pod while the rest goes.
	files := []string{c.Socket(), filepath.Join(c.RunDir, readyFile),
		filepath.Join(c.RunDir, podRulesFile), filepath.Join(c.RunDir, overlayNodesFile), filepath.Join(c.StateDir, "networks", "braid")}
	if c.CNIConfDir != "" {
		files = append([]string{filepath.Join(c.CNIConfDir, Conflist)}, files...)
	}
	removed, errs = removeFiles(removed, errs, files...)
	opened, err := setLoopback(nil) // before the guard goes
	removed, errs = append(removed, opened...), append(errs, err)
	for _, r := range append(remainsBeside(nil, c.Log), trafficRemains{}) {
		had, err := r.Cleanup()
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w: run this as root", err)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("service mode %s: %w", r.Name(), err))
		}
		removed = append(removed, had...)
	}
	masquerading, err := removeEgress("")
	removed, errs = append(removed, masquerading...), append(errs, err)
	forward, err := removeForwarding()
	removed, errs = append(removed, forward...), append(errs, err)
	policy, err := enforce.Remove()
	removed, errs = append(removed, policy...), append(errs, err)
	links, err := cleanupLinks(c)
	removed, errs = append(removed, links...), append(errs, err)
	if err == nil { // as long as the pods' bridge is there, these tables guard the node
		for _, g := range podTables {
			gone, err := g.Destroy()
			removed, errs = append(removed, gone...), append(errs, err)
		}
	}
	return removed, errors.Join(errs...)
}

func removeFiles(removed []string, errs []error, paths ...string) ([]string, []error) {
	for _, p := range paths {
		if _, err := os.Lstat(p); err != nil {
			continue
		}
		if err := os.RemoveAll(p); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, p)
	}
	return removed, errs
}
