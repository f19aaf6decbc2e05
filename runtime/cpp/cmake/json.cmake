# Finds nlohmann/json.hpp: 1. -DTFANET_JSON_INCLUDE_DIR=DIR; 2. the system; 3. Debian's
# nlohmann-json3-dev, unpacked into the build folder (nothing is installed).

set(TFANET_JSON_INCLUDE_DIR "" CACHE PATH "Folder that holds nlohmann/json.hpp, 3.11 or newer")
option(TFANET_FETCH_JSON_HEADERS "Fetch the headers of nlohmann-json if they are missing" ON)

# Sets `result` to the folder of nlohmann/json.hpp, or to an empty string.
function(tfanet_find_json_headers result)
  if(TFANET_JSON_INCLUDE_DIR)
    if(NOT EXISTS ${TFANET_JSON_INCLUDE_DIR}/nlohmann/json.hpp)
      message(FATAL_ERROR "TFANET_JSON_INCLUDE_DIR=${TFANET_JSON_INCLUDE_DIR} holds no "
        "nlohmann/json.hpp; give the folder that holds it")
    endif()
    set(${result} ${TFANET_JSON_INCLUDE_DIR} PARENT_SCOPE)
    return()
  endif()
  unset(TFANET_JSON_FOUND CACHE)
  find_path(TFANET_JSON_FOUND nlohmann/json.hpp)
  mark_as_advanced(TFANET_JSON_FOUND)
  set(fetched ${CMAKE_CURRENT_BINARY_DIR}/json)
  if(NOT TFANET_JSON_FOUND AND TFANET_FETCH_JSON_HEADERS)
    if(NOT EXISTS ${fetched}/usr/include/nlohmann/json.hpp)
      tfanet_headers_from_debian(${fetched} nlohmann-json3-dev)
    endif()
    unset(TFANET_JSON_FOUND CACHE)
    find_path(TFANET_JSON_FOUND nlohmann/json.hpp PATHS ${fetched}/usr/include NO_DEFAULT_PATH)
  endif()
  if(TFANET_JSON_FOUND)
    set(${result} ${TFANET_JSON_FOUND} PARENT_SCOPE)
  else()
    set(${result} "" PARENT_SCOPE)
  endif()
endfunction()
