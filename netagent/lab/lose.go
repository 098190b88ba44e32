package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"
)

// loseNode ends a node as a power cut does, and starts it again with its disk: its programs end, its network
// goes with all links and rules, and so do the sandboxes of its pods, of which nobody told the CNI plugin. What
// is in memory on a real node, such as /run, is gone.
func (d *daemon) loseNode(ctx context.Context, name string) error {
	n, err := d.pods.node(name)
	if err != nil {
		return err
	}
	var programs []*program
	for _, p := range d.programs {
		if p.node == name {
			programs = append(programs, p)
		}
	}
	back, err := d.ctl.LoseNode(name)
	if err != nil {
		return err
	}
	defer back()
	for _, p := range programs {
		p.hold.Lock()
		defer p.hold.Unlock()
		if err := p.signal(unix.SIGKILL); err != nil {
			d.log.Info("lose a node: a program does not run", "err", err)
		}
	}
	err = d.waitFor(ctx, func() bool {
		return !slices.ContainsFunc(programs, func(p *program) bool { return p.status().PID != 0 })
	})
	if err != nil {
		return err
	}
	d.log.Info("node lost", "node", name)
	if err := errors.Join(d.pods.lose(name), os.RemoveAll(d.p.node(name, "run")), makeDirs(d.p.node(name, "run"))); err != nil {
		return fmt.Errorf("lose node %s: %w", name, err)
	}
	if err := d.rewire(&n); err != nil {
		return fmt.Errorf("start node %s again: %w", name, err)
	}
	if err := d.pods.collect(ctx, name); err != nil {
		return fmt.Errorf("start node %s again: CNI GC: %w", name, err)
	}
	return nil
}

// rewire replaces a node's network namespace by a new one.
func (d *daemon) rewire(n *node) error {
	if err := endSpace(d.p.nodeNS(n.name)); err != nil {
		return err
	}
	outside, err := openNS(d.p.outsideNS())
	if err != nil {
		return err
	}
	defer outside.close()
	// The kernel takes its time to remove the old namespace, and the wire's other end with it.
	if port, err := outside.nl.LinkByName(n.name); err == nil {
		if err := outside.nl.LinkDel(port); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove its wire: %w", err)
		}
	}
	return buildNode(d.o, n, outside)
}

// endSpace ends what lives in a namespace, and removes it.
func endSpace(name string) error {
	if id, ok := nsIDOf(nsPath(name)); ok {
		found, err := inhabitants(map[nsID]bool{id: true})
		if err != nil {
			return err
		}
		if left := endAll(found, 0); len(left) > 0 {
			return fmt.Errorf("processes %v in namespace %s do not end", left, name)
		}
	}
	return deleteNS(name)
}

// lose removes the sandboxes of a node's pods without a word to the plugin.
func (r *podRuntime) lose(node string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for key, live := range r.live {
		if live.node != node {
			continue
		}
		errs = append(errs, os.RemoveAll(r.p.podDir(key)), live.server.Close())
		if ns := nsPrefix + r.p.name + "-" + key; exists(nsPath(ns)) {
			errs = append(errs, endSpace(ns))
		}
		delete(r.live, key)
	}
	return errors.Join(errs...)
}

// collect tells the plugin, as runtimes do when they start, that none of the attachments it knows is in use.
func (r *podRuntime) collect(ctx context.Context, node string) error {
	list, err := r.conflist(node)
	if err != nil {
		return nil // none was ever made
	}
	list.CNIVersion = "1.1.0" // GC is of this version; the file says so in cniVersions
	c := libcni.NewCNIConfigWithCacheDir([]string{r.o.BinDir}, r.p.node(node, "cni-cache"), nil)
	return inNS(nsPath(r.p.nodeNS(node)), func() error { return c.GCNetworkList(ctx, list, &libcni.GCArgs{}) })
}
