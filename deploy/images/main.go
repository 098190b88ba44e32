// Command images packs the built programs into container images: one OCI archive each, which
// `ctr --namespace k8s.io images import`, `podman load` and `docker load` take. It needs neither a
// registry nor Docker. The agent's image gets iptables from Debian's packages, so this runs on Debian and its
// kin. The same programs and packages, packed by the same release of Go, give the same bytes.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "folder of the programs coredns, netagent and braid, built for Linux without cgo")
	flag.StringVar(&o.out, "out", "bin/images", "folder to write NAME.tar into")
	flag.StringVar(&o.tag, "tag", "dev", "tag of the images")
	flag.StringVar(&o.roots, "ca-certificates", "/etc/ssl/certs/ca-certificates.crt",
		"PEM file of certificate authorities for forwarding over TLS; empty = none")
	flag.BoolVar(&o.iptables, "iptables", true, "put Debian's iptables into the agent's image, for service mode iptables")
	flag.StringVar(&o.cache, "cache", "", "folder to keep Debian's packages in (default: braid-images in the user's cache folder)")
	flag.StringVar(&o.folders, "folders", "", "write each image's files into this folder as DIR/NAME, for the Dockerfile, and no archives")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

// options say what to pack and where to put it.
type options struct {
	bin, out, tag, roots string
	iptables             bool
	cache, folders       string
	tools                []file // iptables with all it needs
}

func run(o options) error {
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: try -help", flag.Arg(0))
	}
	created, err := created(os.Getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return err
	}
	if o.iptables {
		if o.tools, err = tools(o); err != nil {
			return fmt.Errorf("iptables for the agent's image: %w (-iptables=false goes without; such an image has service mode nftables only)", err)
		}
	}
	for _, s := range specs(o) {
		if err := pack(o, s, created); err != nil {
			return fmt.Errorf("image %s: %w", s.name, err)
		}
	}
	return nil
}

// tools returns iptables for the architecture of the programs; none where packages cannot be had.
func tools(o options) ([]file, error) {
	arch, err := architecture(filepath.Join(o.bin, "netagent"))
	if err != nil {
		return nil, err
	}
	if o.cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("%w: give -cache", err)
		}
		o.cache = filepath.Join(dir, "braid-images")
	}
	d, err := newDebian(o.cache, arch)
	if errors.Is(err, errNotDebian) {
		fmt.Fprintf(os.Stderr, "images: NOTE: %v, so the agent's image holds no iptables and has service mode nftables only; "+
			"deploy/images/Dockerfile makes the whole one anywhere\n", err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	files, packages, err := iptablesFiles(d.open)
	if err != nil {
		apt := err
		if files, packages, err = iptablesFiles(d.installed); err != nil {
			return nil, errors.Join(apt, err)
		}
		fmt.Fprintf(os.Stderr, "images: NOTE: the iptables of this machine is taken, since its packages cannot be had anew: %v\n", apt)
	}
	size := 0
	for _, f := range files {
		size += len(f.data)
	}
	fmt.Printf("iptables: %d files, %.1f MiB, from Debian's packages %s\n", len(files), mebibytes(size), strings.Join(packages, " "))
	return files, nil
}

// pack writes one image, as an archive or as a folder of its files.
func pack(o options, s spec, created time.Time) error {
	files, arch, err := files(s.files, created)
	if err != nil {
		return err
	}
	if o.folders != "" {
		dir := filepath.Join(o.folders, s.name)
		fmt.Printf("%s: files of %s, %.1f MiB\n", dir, s.reference(o.tag), mebibytes(len(files)))
		return unpack(files, dir)
	}
	archive, err := build(s, files, arch, o.tag, created)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	path := filepath.Join(o.out, s.name+".tar")
	fmt.Printf("%s: %s, %.1f MiB, unpacked %.1f\n", path, s.reference(o.tag), mebibytes(len(archive)), mebibytes(len(files)))
	return write(path, archive)
}

func mebibytes(n int) float64 { return float64(n) / (1 << 20) }

// created is the time that images and files in them say they were made: that of the variable
// SOURCE_DATE_EPOCH (reproducible-builds.org, seconds), else the beginning of 1970. A clock would make
// every build another image.
func created(epoch string) (time.Time, error) {
	if epoch == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || seconds < 0 {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %q is no number of seconds since 1970", epoch)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// write replaces a file, so that an import never reads half of one.
func write(path string, data []byte) error {
	if err := os.WriteFile(path+".tmp", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}
