package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/sysctl"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// Error codes of STATUS (specification 1.1.0, section "STATUS").
const (
	errNotAvailable = 50
	errLimited      = 51 // and pods that run already may be cut off, too
)

// status says whether an ADD would work now. Runtimes ask every few seconds and
// report the node as not ready when it would not, upon which its pods may be
// moved elsewhere; so it looks at a few files only, and not at what passes by itself
// or concerns new pods only, such as a range that is full.
func status(args *skel.CmdArgs) error {
	conf, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	if conf.ReadyFile != "" {
		if _, err := os.Stat(conf.ReadyFile); err != nil {
			return types.NewError(errNotAvailable, "the node's agent has not brought routes and services into force since the node started: is it running?", err.Error())
		}
	}
	if err := writable(conf.DataDir); err != nil {
		return types.NewError(errNotAvailable, "addresses cannot be reserved", err.Error())
	}
	node, err := link.OpenAt(-1)
	if err != nil {
		return types.NewError(errNotAvailable, "the kernel cannot be asked", err.Error())
	}
	defer node.Close()
	if !conf.Routed {
		if err := link.CheckBridge(node, conf.Bridge); err != nil {
			return types.NewError(errNotAvailable, "pods cannot be connected", err.Error())
		}
	}
	if conf.ReadyFile == "" {
		return nil // ADD sees to the rest
	}
	for _, set := range conf.Sets {
		name := sysctl.Forwarding(set[0].Gateway.Is4())
		if value, err := sysctl.Get(name); err != nil || value != "1" {
			return types.NewError(errLimited, "the node does not forward packets of pods", fmt.Sprintf("sysctl %s is %q, expected 1 (%v)", name, value, err))
		}
	}
	return nil
}

// writable tells whether files can be made in a folder, or the folder itself
// in the nearest one that is there.
func writable(dir string) error {
	for {
		err := unix.Access(dir, unix.W_OK|unix.X_OK)
		if err == nil {
			return nil
		}
		if parent := filepath.Dir(dir); !errors.Is(err, fs.ErrNotExist) || parent == dir {
			return &os.PathError{Op: "write to", Path: dir, Err: err}
		}
		dir = filepath.Dir(dir)
	}
}
