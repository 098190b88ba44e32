package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// debian gets packages through the machine's own apt and dpkg. No package is installed, and no right is
// needed.
type debian struct {
	cache string   // folder for packages, and for lists when the machine has none
	arch  string   // "amd64"
	lists []string // options that make apt use lists of our own; empty = the machine's
}

// errNotDebian means that this machine has no apt.
var errNotDebian = errors.New("there is no apt-get and dpkg-deb on this machine")

func newDebian(cache, arch string) (*debian, error) {
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, errNotDebian
		}
	}
	d := &debian{cache: filepath.Join(cache, arch), arch: arch}
	return d, os.MkdirAll(filepath.Join(d.cache, "apt/lists/partial"), 0o755)
}

// open is a debs.
func (d *debian) open(names []string) (map[string]entry, []string, error) {
	if err := d.download(names); err != nil {
		return nil, nil, err
	}
	known, err := output(d.apt("apt-cache", append([]string{"show", "--no-all-versions", "--"}, names...)...))
	if err != nil {
		return nil, nil, err
	}
	files, depends := map[string]entry{}, []string{}
	for _, p := range paragraphs(string(known)) {
		deb := filepath.Join(d.cache, p["Package"]+"_"+strings.ReplaceAll(p["Version"], ":", "%3a")+"_"+p["Architecture"]+".deb")
		data, err := output(exec.Command("dpkg-deb", "--fsys-tarfile", deb))
		if err != nil {
			return nil, nil, err
		}
		list, err := readPackage(p["Package"], data)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", deb, err)
		}
		maps.Copy(files, list)
		depends = append(depends, dependencies(p["Depends"])...)
	}
	return files, depends, nil
}

// download brings the newest version of packages into the cache; apt fetches what is not there, and checks
// everything. The machine's lists come first. Where they do not know the packages (a fresh container has no
// lists, and an ordinary machine none of another architecture), we get lists of our own.
func (d *debian) download(names []string) error {
	try := func() error {
		_, err := output(d.apt("apt-get", append([]string{"download", "--"}, names...)...))
		return err
	}
	first := try()
	if first == nil || len(d.lists) > 0 {
		return first
	}
	state := filepath.Join(d.cache, "apt")
	d.lists = []string{"-o", "Dir::State::Lists=" + filepath.Join(state, "lists"), "-o", "Dir::Cache=" + state}
	if try() == nil {
		return nil // with those of an earlier run
	}
	_, err := output(d.apt("apt-get", "update"))
	if err == nil {
		err = try()
	}
	if err != nil {
		return errors.Join(first, err)
	}
	return nil
}

// installed is a debs of what is installed on this machine: the files of the same packages, for those without
// a network.
func (d *debian) installed(names []string) (map[string]entry, []string, error) {
	if native, err := output(exec.Command("dpkg", "--print-architecture")); err != nil || strings.TrimSpace(string(native)) != d.arch {
		return nil, nil, errors.Join(fmt.Errorf("this machine is %s, not %s", bytes.TrimSpace(native), d.arch), err)
	}
	files, depends := map[string]entry{}, []string{}
	for _, pkg := range names {
		field, err := output(exec.Command("dpkg-query", "--show", "--showformat=${Depends}", pkg))
		if err != nil {
			return nil, nil, err
		}
		depends = append(depends, dependencies(string(field))...)
		list, err := output(exec.Command("dpkg-query", "--listfiles", pkg))
		if err != nil {
			return nil, nil, err
		}
		for _, name := range strings.Fields(string(list)) {
			e, err := readInstalled(pkg, name)
			if err != nil {
				return nil, nil, err
			}
			if e.mode != 0 {
				files[merged(strings.TrimPrefix(name, "/"))] = e
			}
		}
	}
	return files, depends, nil
}

// readInstalled reads a file of a package; a folder, or what somebody removed, gives an entry without a mode.
func readInstalled(pkg, name string) (entry, error) {
	info, err := os.Lstat(name)
	switch {
	case errors.Is(err, os.ErrNotExist) || err == nil && info.IsDir():
		return entry{}, nil
	case err != nil:
		return entry{}, err
	case info.Mode()&os.ModeSymlink != 0:
		link, err := os.Readlink(name)
		return entry{from: pkg, mode: 0o777, link: link}, err
	}
	data, err := os.ReadFile(name)
	return entry{from: pkg, mode: int64(info.Mode().Perm()), data: data}, err
}

// apt returns a command of apt's that works in the cache.
func (d *debian) apt(tool string, args ...string) *exec.Cmd {
	options := append([]string{"-q", "-o", "APT::Architecture=" + d.arch, "-o", "APT::Architectures=" + d.arch, "-o", "APT::Sandbox::User=", "-o", "Acquire::Retries=0"}, d.lists...)
	cmd := exec.Command(tool, append(options, args...)...)
	cmd.Dir = d.cache
	return cmd
}

// paragraphs reads what apt-cache prints: a paragraph of fields for each package (deb822(5)).
func paragraphs(text string) (out []map[string]string) {
	for _, p := range strings.Split(strings.TrimSpace(text), "\n\n") {
		fields := map[string]string{}
		for _, line := range strings.Split(p, "\n") {
			if name, value, ok := strings.Cut(line, ":"); ok && !strings.HasPrefix(line, " ") {
				fields[name] = strings.TrimSpace(value)
			}
		}
		out = append(out, fields)
	}
	return out
}

// dependencies reads the field Depends: names without versions, the first of alternatives.
func dependencies(field string) (out []string) {
	for _, d := range strings.Split(field, ",") {
		first, _, _ := strings.Cut(strings.TrimSpace(d), "|")
		if name, _, _ := strings.Cut(strings.TrimSpace(first), " "); name != "" {
			name, _, _ = strings.Cut(name, ":")
			out = append(out, name)
		}
	}
	return out
}

// readPackage reads the tar of a package's files.
func readPackage(pkg string, data []byte) (map[string]entry, error) {
	out := map[string]entry{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		name := merged(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			content, err := io.ReadAll(r)
			if err != nil {
				return nil, err
			}
			out[name] = entry{from: pkg, mode: h.Mode & 0o777, data: content}
		case tar.TypeSymlink:
			out[name] = entry{from: pkg, mode: 0o777, link: h.Linkname}
		case tar.TypeLink:
			out[name] = out[merged(h.Linkname)]
		}
	}
}

func output(cmd *exec.Cmd) ([]byte, error) {
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out, nil
}
